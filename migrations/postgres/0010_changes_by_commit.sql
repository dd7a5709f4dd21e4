-- The feed of changes, numbered at the commit.
--
-- 1. A statement that makes cached keys untrue adds rows to `changed`, without a number and without a lock.
-- 2. The first of a transaction adds a row that is marked, whose deferred trigger gives the whole transaction one number when it
--    commits. The lock that makes the order of numbers the order of commits is held for the commit alone, however large the change
--    is: as long as PostgreSQL itself keeps commits apart that notify.
-- 3. `change_feed` has a row for each such transaction. Its random id tells a number from the same number in another history: after
--    a failover, or in a database restored from a backup.
-- No row here is ever updated, so a long snapshot leaves no dead versions in the way of readers.

-- In one order, and before anything is changed: replicas of the version before may be at work.
lock table accounts, api_keys, key_secrets, change_counter, changes, replicas in access exclusive mode;

drop trigger account_changed on accounts;
drop trigger accounts_truncated on accounts;
drop trigger key_zchanged on api_keys;
drop trigger keys_truncated on api_keys;
drop trigger secret_changed on key_secrets;
drop trigger secrets_truncated on key_secrets;
drop function announce_change();
drop function announce_truncation();

alter table change_counter rename to change_counter_before;
alter table changes rename to changes_before;

create sequence change_numbers;

create table change_feed (
    n   bigint primary key,
    id  uuid not null
);

create table changed (
    change_id   uuid not null,
    prefix      text collate "C",
    account_id  uuid,
    mark        text check (mark in ('transaction', 'everything')),
    check (num_nonnulls(prefix, account_id, mark) = 1)
);

insert into change_feed (n, id)
select n, gen_random_uuid() from (select n from changes_before union select n from change_counter_before) as numbers;

insert into changed (change_id, prefix, account_id)
select f.id, c.prefix, c.account_id from changes_before c join change_feed f on f.n = c.n;

select setval('change_numbers', n + 1, false) from change_counter_before;

drop table changes_before;
drop table change_counter_before;

create index changed_by_change on changed (change_id);
create index changed_everything on changed (change_id) where mark = 'everything';

create function number_change() returns trigger language plpgsql set search_path from current as $$
begin
    -- "changes" in ASCII, as a number.
    perform pg_advisory_xact_lock(27980790367741299);
    insert into change_feed (n, id) values (nextval('change_numbers'), new.change_id);
    perform pg_notify('changes', '');
    return null;
end
$$;

create constraint trigger change_numbered after insert on changed
    deferrable initially deferred
    for each row when (new.mark = 'transaction') execute function number_change();

-- The setting lasts as long as the transaction, and goes with a savepoint that is rolled back, as the marked row does.
create function announce_change() returns trigger language plpgsql set search_path from current as $$
declare
    change uuid := nullif(current_setting('momail.change', true), '')::uuid;
begin
    if change is null then
        change := gen_random_uuid();
        perform set_config('momail.change', change::text, true);
        insert into changed (change_id, mark) values (change, 'transaction');
    end if;
    if tg_op = 'TRUNCATE' then
        insert into changed (change_id, mark) values (change, 'everything');
    elsif tg_table_name = 'accounts' then
        insert into changed (change_id, account_id) values (change, old.id);
    elsif tg_table_name = 'api_keys' then
        insert into changed (change_id, prefix) select change, prefix from key_secrets where key_id = old.id;
    else
        insert into changed (change_id, prefix) values (change, old.prefix);
    end if;
    return null;
end
$$;

-- What a credential holds, and nothing else: making a key, using it or giving it another name makes no cached key untrue.
create trigger account_changed after update on accounts
    for each row when ((old.id, old.plan) is distinct from (new.id, new.plan))
    execute function announce_change();
create trigger key_changed after update on api_keys
    for each row when (
        (old.id, old.account_id, old.expires_at, old.revoked_at, old.permissions, old.disabled_at)
        is distinct from (new.id, new.account_id, new.expires_at, new.revoked_at, new.permissions, new.disabled_at)
    )
    execute function announce_change();
create trigger secret_changed after update on key_secrets
    for each row when (
        (old.prefix, old.key_id, old.hash, old.retires_at) is distinct from (new.prefix, new.key_id, new.hash, new.retires_at)
    )
    execute function announce_change();
create trigger secret_deleted after delete on key_secrets
    for each row execute function announce_change();

create trigger accounts_truncated after truncate on accounts
    for each statement execute function announce_change();
create trigger keys_truncated after truncate on api_keys
    for each statement execute function announce_change();
create trigger secrets_truncated after truncate on key_secrets
    for each statement execute function announce_change();

-- Heartbeats are counted, so that each replica can see by its own clock that another has stopped. Null is a replica of the version
-- before, which alone reports its progress in `applied`.
alter table replicas add column beats bigint;

create table replica_progress (
    replica_id  uuid not null,
    n           bigint not null,
    primary key (replica_id, n)
);

-- For replicas of the version before, until they are replaced.
create view change_counter as
    select true as only_row, (select n from change_feed order by n desc limit 1) as n;

-- A feed that does not reach back to what a replica has applied makes it forget everything.
create view changes as
    select f.n, c.prefix, c.account_id
    from change_feed f join changed c on c.change_id = f.id
    where c.mark is null and f.n > coalesce(
        (select max(a.n) from changed e join change_feed a on a.id = e.change_id where e.mark = 'everything'), 0);

create function keep_changes() returns trigger language plpgsql as $$
begin
    return null;
end
$$;

create trigger changes_kept instead of delete on changes for each row execute function keep_changes();
