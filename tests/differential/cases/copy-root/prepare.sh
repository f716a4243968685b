chmod 700 root root/etc root/tmp
