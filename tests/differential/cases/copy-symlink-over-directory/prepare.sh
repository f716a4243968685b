mkdir links; ln -s a links/l1
