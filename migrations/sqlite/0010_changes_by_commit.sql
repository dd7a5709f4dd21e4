-- The feed of changes: each has a number and a random id, which tells it from the same number in another history, such as a file
-- that was restored from a backup. No row is ever updated.

drop trigger account_changed;
drop trigger key_changed;
drop trigger key_deleted;
drop trigger secret_changed;
drop trigger secret_removed;

create table change_feed (
    n   integer primary key autoincrement,
    id  blob not null default (randomblob(16)) check (length(id) = 16)
) strict;

create table changed (
    change_id   blob not null,
    prefix      text,
    account_id  blob,
    mark        text check (mark in ('transaction', 'everything')),
    check ((prefix is not null) + (account_id is not null) + (mark is not null) = 1)
) strict;

insert into change_feed (n) select n from changes union select n from change_counter;

insert into changed (change_id, prefix, account_id)
select f.id, c.prefix, c.account_id from changes c join change_feed f on f.n = c.n;

drop table changes;
drop table change_counter;

create index changed_by_change on changed (change_id);

-- What is inserted here is announced.
create view announced as select null as prefix, null as account_id;

create trigger announce_change instead of insert on announced
begin
    insert into change_feed (id) values (randomblob(16));
    insert into changed (change_id, prefix, account_id)
    select id, new.prefix, new.account_id from change_feed where n = last_insert_rowid();
end;

-- What a credential holds, and nothing else: making a key, using it or giving it another name makes no cached key untrue.
create trigger account_changed after update on accounts when old.id is not new.id or old.plan is not new.plan
begin
    insert into announced (account_id) values (old.id);
end;

create trigger key_changed after update on api_keys
    when old.id is not new.id or old.account_id is not new.account_id or old.expires_at is not new.expires_at
        or old.revoked_at is not new.revoked_at or old.permissions is not new.permissions
        or old.disabled_at is not new.disabled_at
begin
    insert into announced (prefix) select prefix from key_secrets where key_id = old.id;
end;

-- The sqlite3 shell leaves foreign keys off unless it is told otherwise, and then removes no secret with its key.
create trigger key_deleted before delete on api_keys
begin
    insert into announced (prefix) select prefix from key_secrets where key_id = old.id;
end;

create trigger secret_changed after update on key_secrets
    when old.prefix is not new.prefix or old.key_id is not new.key_id or old.hash is not new.hash
        or old.retires_at is not new.retires_at
begin
    insert into announced (prefix) values (old.prefix);
end;

create trigger secret_deleted after delete on key_secrets
begin
    insert into announced (prefix) values (old.prefix);
end;

-- `replace`, `insert or replace` and `update or replace` remove rows that are in their way, and no trigger of a deletion fires. So
-- what has a unique column's value is announced before another row takes it; `rowid` is one of these columns.
create trigger account_replaced before insert on accounts
begin
    insert into announced (account_id) select id from accounts where id = new.id or rowid = new.rowid;
end;

create trigger account_run_over before update of id on accounts when old.id is not new.id
begin
    insert into announced (account_id) select id from accounts where id = new.id;
end;

create trigger key_replaced before insert on api_keys
begin
    insert into announced (prefix)
    select s.prefix from api_keys k join key_secrets s on s.key_id = k.id where k.id = new.id or k.rowid = new.rowid;
end;

create trigger key_run_over before update of id on api_keys when old.id is not new.id
begin
    insert into announced (prefix) select prefix from key_secrets where key_id = new.id;
end;

create trigger secret_replaced before insert on key_secrets
begin
    insert into announced (prefix) select prefix from key_secrets where prefix = new.prefix or rowid = new.rowid;
end;

create trigger secret_run_over before update of prefix on key_secrets when old.prefix is not new.prefix
begin
    insert into announced (prefix) select prefix from key_secrets where prefix = new.prefix;
end;

-- Heartbeats are counted, so that each replica can see by its own clock that another has stopped. Null is a replica of the version
-- before, which alone reports its progress in `applied`.
alter table replicas add column beats integer;

create table replica_progress (
    replica_id  blob not null,
    n           integer not null,
    primary key (replica_id, n)
) strict;

-- For processes of the version before, until they are replaced.
create view change_counter as
    select 1 as only_row, (select n from change_feed order by n desc limit 1) as n;

create view changes as
    select f.n, c.prefix, c.account_id from change_feed f join changed c on c.change_id = f.id where c.mark is null;

create trigger changes_kept instead of delete on changes
begin
    select 1;
end;
