chmod 700 docs
