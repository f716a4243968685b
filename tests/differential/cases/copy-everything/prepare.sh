rm empty-to-be/x
