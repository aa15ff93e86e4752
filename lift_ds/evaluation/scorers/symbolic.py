def is_equivalent(a,b): return False
