mkdir links; ln -s a links/l1; ln -s b links/l2; ln -s c links/l3
