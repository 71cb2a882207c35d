"""Event stores: where streams of events are appended and read.

store.py           the protocols, and `Snapshot`            recorded.py     what a stored event looks like
in_memory_store, sqlalchemy_store, sqlite_store, postgresql_store           the stores
sql_log.py         what those in a database have in common  encoding.py, event_types.py     events to rows and back
deleting.py        the one way to remove a stream
"""
