"""The history of the tables: one file for each version, run by `controller.store.sql.schema`.

A file that was released is never edited. It names columns by itself rather than by `tables.py`, which shows only the newest version.
"""
