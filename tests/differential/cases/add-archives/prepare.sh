mkdir -p t/dir/sub; echo f > t/file; echo d > t/dir/d; echo s > t/suid; chmod 4755 t/suid; ln -s file t/soft; ln t/file t/hard; mkfifo t/pipe
chmod 1777 t/dir/sub; chmod 640 t/dir/d; chown 5:6 t/dir t/dir/d
tar cf plain.tar -C t . ; rm t/pipe; for k in 'gz gzip' 'bz2 bzip2' 'xz xz' 'zst zstd'; do set -- $k; $2 -c plain.tar > plain.tar.$1; done; cp plain.tar.gz misnamed.txt; echo nothing > text.tar; echo x | gzip -n > single.gz; rm -r t; mkdir d; cp plain.tar.gz d/; tar cf empty.tar -T /dev/null; head -c 20 plain.tar.gz > trunc
