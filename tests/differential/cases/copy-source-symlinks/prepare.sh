ln -s a.txt tofile
ln -s tree todir
mkdir links && ln -s ../a.txt links/inner && ln -s /etc/passwd links/abs && ln -s nowhere links/dangling && ln -s ../tree links/dir
ln -s /a.txt abs
