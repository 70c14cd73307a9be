"""One process or many: the group of processes, and models shared by them."""
