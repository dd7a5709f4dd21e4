-- How many days before its end a key was last warned of, so that each warning is given once; a new expiry begins anew.

alter table api_keys add column told_days integer;

create index api_keys_by_expiry on api_keys (expires_at) where expires_at is not null;
create index api_keys_by_revocation on api_keys (revoked_at) where revoked_at is not null;
