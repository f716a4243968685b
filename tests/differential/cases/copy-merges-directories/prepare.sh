chmod 750 tree tree/sub && chmod 600 tree/one.txt
