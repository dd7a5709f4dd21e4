-- Replicas keep keys in memory. What changes a key is numbered in the order of commits, so that each can tell what it has not heard of.

create table change_counter (
    only_row  integer primary key default 1 check (only_row = 1),
    n         integer not null
) strict;

insert into change_counter (n) values (0);

-- Each change names a secret that must be read again, or an account of which all must be.
create table changes (
    n           integer not null,
    prefix      text,
    account_id  blob,
    check ((prefix is null) <> (account_id is null))
) strict;

create index changes_in_order on changes (n);

-- Whoever changes something waits for those in this list.
create table replicas (
    id          blob primary key check (length(id) = 16),
    applied     integer not null,
    lease_ms    integer not null,
    renewed_ms  integer not null
) strict;

-- The list goes by the database's clock on every engine.
create view database_clock as
    select cast(unixepoch('subsec') * 1000 as integer) as ms;

-- Making a key and using it are no changes.
create trigger account_changed after update of plan on accounts
begin
    update change_counter set n = n + 1;
    insert into changes (n, account_id) select n, old.id from change_counter;
end;

create trigger key_changed after update of account_id, expires_at, revoked_at on api_keys
begin
    update change_counter set n = n + 1;
    insert into changes (n, prefix) select c.n, s.prefix from change_counter c, key_secrets s where s.key_id = old.id;
end;

create trigger secret_changed after update of prefix, key_id, hash, retires_at on key_secrets
begin
    update change_counter set n = n + 1;
    insert into changes (n, prefix) select n, old.prefix from change_counter;
end;

create trigger secret_removed after delete on key_secrets
begin
    update change_counter set n = n + 1;
    insert into changes (n, prefix) select n, old.prefix from change_counter;
end;

-- The sqlite3 shell leaves foreign keys off unless it is told otherwise, and then removes no secret with its key.
create trigger key_deleted before delete on api_keys
begin
    update change_counter set n = n + 1;
    insert into changes (n, prefix) select c.n, s.prefix from change_counter c, key_secrets s where s.key_id = old.id;
end;
