"""Bytes on disk: how they come in (upload log, regions, pipeline, staging) and how they go out (layout, reader, packs).

Nothing here knows the index: ids come from outside, forms (``cachesrv.store.commands``) go back.
"""
