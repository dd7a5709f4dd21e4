-- Replicas keep keys in memory. What changes a key is numbered in the order of commits, so that each can tell what it has not heard of.

create table change_counter (
    only_row  boolean primary key default true check (only_row),
    n         bigint not null
);

insert into change_counter (n) values (0);

-- Each change names a secret that must be read again, or an account of which all must be.
create table changes (
    n           bigint not null,
    prefix      text collate "C",
    account_id  uuid,
    check ((prefix is null) <> (account_id is null))
);

create index changes_in_order on changes (n);

-- Whoever changes something waits for those in this list.
create table replicas (
    id          uuid primary key,
    applied     bigint not null,
    lease_ms    bigint not null,
    renewed_ms  bigint not null
);

-- Replicas' own clocks may differ; the list goes by this one.
create view database_clock as
    select (extract(epoch from clock_timestamp()) * 1000)::bigint as ms;

-- The counter's row is locked until the change commits, so the order of numbers is the order of commits, without a gap that
-- could fill up later. Making a key and using it are no changes.
create function announce_change() returns trigger language plpgsql as $$
declare
    number bigint;
begin
    update change_counter set n = n + 1 returning n into number;
    if tg_table_name = 'accounts' then
        insert into changes (n, account_id) values (number, old.id);
    elsif tg_table_name = 'api_keys' then
        insert into changes (n, prefix) select number, prefix from key_secrets where key_id = old.id;
    else
        insert into changes (n, prefix) values (number, old.prefix);
    end if;
    perform pg_notify('changes', '');
    return null;
end
$$;

-- Of rows that are all gone at once, nobody is told one by one. A feed with nothing in it has missed something, and whoever follows
-- it forgets everything.
create function announce_truncation() returns trigger language plpgsql as $$
begin
    update change_counter set n = n + 1;
    delete from changes;
    perform pg_notify('changes', '');
    return null;
end
$$;

create trigger accounts_truncated after truncate on accounts
    for each statement execute function announce_truncation();
create trigger keys_truncated after truncate on api_keys
    for each statement execute function announce_truncation();
create trigger secrets_truncated after truncate on key_secrets
    for each statement execute function announce_truncation();

create trigger account_changed after update of plan on accounts
    for each row execute function announce_change();
-- Triggers fire in the order of their names, and every change must lock an account before the counter: so this one comes after
-- key_moved, which counts the account's keys.
create trigger key_zchanged after update of account_id, expires_at, revoked_at on api_keys
    for each row execute function announce_change();
create trigger secret_changed after update of prefix, key_id, hash, retires_at or delete on key_secrets
    for each row execute function announce_change();
