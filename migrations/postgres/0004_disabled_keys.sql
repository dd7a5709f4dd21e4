-- A disabled key opens nothing until it is enabled again; unlike a revoked one it keeps its place in the account.

alter table api_keys add column disabled_at timestamptz;

drop trigger key_zchanged on api_keys;
create trigger key_zchanged after update of account_id, expires_at, revoked_at, permissions, disabled_at on api_keys
    for each row execute function announce_change();
