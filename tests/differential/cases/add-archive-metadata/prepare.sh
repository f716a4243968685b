mkdir -p t/dir/sub; echo f > t/file; echo d > t/dir/d; echo s > t/suid; chmod 4755 t/suid; ln -s file t/soft; ln t/file t/hard; mkfifo t/pipe
chmod 1777 t/dir/sub; chmod 640 t/dir/d; chown 5:6 t/dir t/dir/d
chmod 700 t; chown 1:2 t; tar cf t.tar -C t .; rm -r t
