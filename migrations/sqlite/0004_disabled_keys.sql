-- A disabled key opens nothing until it is enabled again; unlike a revoked one it keeps its place in the account.

alter table api_keys add column disabled_at text;

drop trigger key_changed;
create trigger key_changed after update of account_id, expires_at, revoked_at, permissions, disabled_at on api_keys
begin
    update change_counter set n = n + 1;
    insert into changes (n, prefix) select c.n, s.prefix from change_counter c, key_secrets s where s.key_id = old.id;
end;
