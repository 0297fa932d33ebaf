"""`sternum shard` and `sternum verify`: writes packed folders and checks them."""
