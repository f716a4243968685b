chmod 600 secret; chmod 700 linked; ln linked/a linked/b; mkfifo linked/pipe; ln -s nowhere dangling; chmod 6711 linked/a
