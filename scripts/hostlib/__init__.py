"""Two hosts on one machine, and a cell across them."""
