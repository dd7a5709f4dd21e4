-- An account owns keys; a key is the thing with a name; a secret is one text that opens it (a key may have two while it is rotated).

create table accounts (
    id          uuid primary key,
    name        text not null,
    plan        text not null check (plan in ('free', 'pro', 'enterprise')),
    live_keys   integer not null default 0 check (live_keys >= 0),
    created_at  timestamptz not null
);

create table api_keys (
    id          uuid primary key,
    account_id  uuid not null references accounts (id),
    name        text not null,
    created_at  timestamptz not null,
    expires_at  timestamptz,
    revoked_at  timestamptz
);

create index api_keys_of_account on api_keys (account_id, created_at desc, id desc) where revoked_at is null;

-- Free space on each page keeps the updates of last_used_at away from the indexes.
create table key_secrets (
    prefix        text collate "C" primary key,
    key_id        uuid not null references api_keys (id) on delete cascade,
    hash          bytea not null check (octet_length(hash) = 32),
    created_at    timestamptz not null,
    retires_at    timestamptz,
    last_used_at  timestamptz
) with (fillfactor = 80);

create index key_secrets_of_key on key_secrets (key_id);

-- The plan's number of keys is judged by this count, so whatever changes the keys must move it: the service, a job or an operator's SQL.
create function count_live_keys() returns trigger language plpgsql as $$
begin
    if tg_op <> 'INSERT' and old.revoked_at is null then
        update accounts set live_keys = live_keys - 1 where id = old.account_id;
    end if;
    if tg_op <> 'DELETE' and new.revoked_at is null then
        update accounts set live_keys = live_keys + 1 where id = new.account_id;
    end if;
    return null;
end
$$;

create trigger key_created after insert on api_keys
    for each row execute function count_live_keys();
create trigger key_removed after delete on api_keys
    for each row execute function count_live_keys();
create trigger key_moved after update of revoked_at, account_id on api_keys
    for each row when (old.revoked_at is distinct from new.revoked_at or old.account_id <> new.account_id)
    execute function count_live_keys();
