chmod 750 tree tree/sub
