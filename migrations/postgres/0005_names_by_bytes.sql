-- Names are compared and sorted by their bytes, as SQLite does it, whatever the server's own collation is.

alter table api_keys alter column name type text collate "C";
