"""How collections are served: the data modules."""
