mkdir links; ln -s ../a.txt links/l; echo x > links/x
