ln -s a.txt link-file
ln -s tree link-dir
