-- What a key may do, as names with a space between them, so that the catalogue of names may change. Null is everything: the keys
-- made before there were permissions, and the first key of each account.

alter table api_keys add column permissions text collate "C";

-- A change of permissions is a change like any other.
drop trigger key_zchanged on api_keys;
create trigger key_zchanged after update of account_id, expires_at, revoked_at, permissions on api_keys
    for each row execute function announce_change();
