mkdir -p t/dir t/todir t/wasfile; echo new > t/file; echo x > t/todir/x; echo y > t/wasfile/y; chmod 755 t/dir
tar cf t.tar -C t . ; rm -r t
