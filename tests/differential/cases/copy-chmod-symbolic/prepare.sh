chmod 6755 mode/x; chmod 600 mode/y
