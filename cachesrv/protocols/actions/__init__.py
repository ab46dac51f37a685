"""The GitHub Actions cache: v2 Twirp, v1 REST and the blob storage behind signed URLs, over one set of entries.

``room`` routes; ``twirp``, ``rest`` and ``azure`` are the three dialects, each with its status table; ``lookups`` and
``saves`` hold the rules they share, ``errors`` what each answers when something is wrong.
"""
