"""What breaks around nodes at work: lines, servers, whole machines. Each test plants a fault under load, heals it, and judges.

scale.py     how much of everything           producer.py   load that tries again with the same ids
witness.py   what ran, and the verdict        site.py       a server, a proxy before it, a node behind the proxy
cables.py    nodes in network namespaces, with cables that can be pulled
"""
