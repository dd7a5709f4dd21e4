-- How many requests each key has made, by the hour and by the day since 1970 in UTC. A key's counts go with it.

create table usage_by_hour (
    key_id   blob not null references api_keys (id) on delete cascade,
    hour     integer not null,
    allowed  integer not null,
    refused  integer not null,
    primary key (key_id, hour)
) strict;

create index usage_by_hour_by_age on usage_by_hour (hour);

create table usage_by_day (
    key_id   blob not null references api_keys (id) on delete cascade,
    day      integer not null,
    allowed  integer not null,
    refused  integer not null,
    primary key (key_id, day)
) strict;

create index usage_by_day_by_age on usage_by_day (day);
