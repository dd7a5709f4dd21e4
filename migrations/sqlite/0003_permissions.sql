-- What a key may do, as names with a space between them, so that the catalogue of names may change. Null is everything: the keys
-- made before there were permissions, and the first key of each account.

alter table api_keys add column permissions text;

-- A change of permissions is a change like any other.
drop trigger key_changed;
create trigger key_changed after update of account_id, expires_at, revoked_at, permissions on api_keys
begin
    update change_counter set n = n + 1;
    insert into changes (n, prefix) select c.n, s.prefix from change_counter c, key_secrets s where s.key_id = old.id;
end;
