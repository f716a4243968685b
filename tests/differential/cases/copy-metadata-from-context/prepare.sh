mkdir -p m/sticky m/none; echo s > m/suid; chmod 6755 m/suid; echo r > m/readonly; chmod 400 m/readonly; chmod 1777 m/sticky; chmod 000 m/none; chown -R 12:34 m; chmod 6755 m/suid; chmod 2750 m
