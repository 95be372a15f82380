"""Shipped to users: the store contract suite, fault injection and a fake clock."""
