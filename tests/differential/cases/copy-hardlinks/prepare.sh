ln linked/a linked/b; mkdir linked/d; ln linked/a linked/d/c
