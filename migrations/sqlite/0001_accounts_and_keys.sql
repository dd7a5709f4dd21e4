-- An account owns keys; a key is the thing with a name; a secret is one text that opens it (a key may have two while it is rotated).

create table accounts (
    id          blob primary key check (length(id) = 16),
    name        text not null,
    plan        text not null check (plan in ('free', 'pro', 'enterprise')),
    live_keys   integer not null default 0 check (live_keys >= 0),
    created_at  text not null
) strict;

create table api_keys (
    id          blob primary key check (length(id) = 16),
    account_id  blob not null references accounts (id),
    name        text not null,
    created_at  text not null,
    expires_at  text,
    revoked_at  text
) strict;

create index api_keys_of_account on api_keys (account_id, created_at desc, id desc) where revoked_at is null;

create table key_secrets (
    prefix        text primary key,
    key_id        blob not null references api_keys (id) on delete cascade,
    hash          blob not null check (length(hash) = 32),
    created_at    text not null,
    retires_at    text,
    last_used_at  text
) strict;

create index key_secrets_of_key on key_secrets (key_id);

-- The plan's number of keys is judged by this count, so whatever changes the keys must move it: the service, a job or an operator's SQL.
create trigger key_created after insert on api_keys when new.revoked_at is null
begin
    update accounts set live_keys = live_keys + 1 where id = new.account_id;
end;

create trigger key_removed after delete on api_keys when old.revoked_at is null
begin
    update accounts set live_keys = live_keys - 1 where id = old.account_id;
end;

create trigger key_moved after update of revoked_at, account_id on api_keys
    when old.revoked_at is not new.revoked_at or old.account_id <> new.account_id
begin
    update accounts set live_keys = live_keys - 1 where id = old.account_id and old.revoked_at is null;
    update accounts set live_keys = live_keys + 1 where id = new.account_id and new.revoked_at is null;
end;
