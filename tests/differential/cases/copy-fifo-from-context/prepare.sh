mkdir dir; mkfifo dir/pipe; echo x > dir/x
