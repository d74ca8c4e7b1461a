-- The same results as flights.yaml, written once more as plain DuckDB statements over the same files.
-- The tests compare the two row for row. `flights.csv` is the unpacked archive.
SET TimeZone = 'UTC';
CREATE VIEW flights AS SELECT * FROM read_csv('{flights}', nullstr = ['', 'NA']);
CREATE VIEW weather AS SELECT * FROM read_csv('data/weather.csv.gz', nullstr = ['', 'NA']);
CREATE VIEW planes AS SELECT * FROM read_csv('data/planes.csv.gz', nullstr = ['', 'NA']);
CREATE TABLE plausible AS
SELECT f.month, f.dep_time, f.dep_delay, f.arr_time, f.arr_delay, f.carrier, f.flight, f.tailnum, f.origin, f.dest, f.air_time,
       f.distance, f.time_hour, make_timestamp(f.year, f.month, f.day, f.hour, f.minute, 0) AS scheduled,
       round(f.distance * 1.609344 / nullif(f.air_time, 0) * 60, 1) AS speed_kmh, a.name AS airline, p.name AS destination,
       n.seats, n.year AS built
FROM flights f
JOIN 'data/airlines.csv' a ON a.carrier = f.carrier
LEFT JOIN 'data/airports.csv.gz' p ON p.faa = f.dest
LEFT JOIN planes n ON n.tailnum = f.tailnum
WHERE coalesce(speed_kmh BETWEEN 100 AND 1100, true) AND coalesce(f.distance > 0, true);
CREATE TABLE flown AS
SELECT q.*, w.temp, w.wind_speed, w.precip, w.visib FROM plausible q
LEFT JOIN weather w ON w.origin = q.origin AND w.time_hour = q.time_hour
WHERE q.dep_time IS NOT NULL AND q.arr_delay IS NOT NULL;
CREATE TABLE airlines AS
SELECT airline, month, count(*) AS flights, count(*) FILTER (arr_delay > 15) AS late, round(avg(arr_delay), 2) AS mean_delay,
       sum(seats) AS seats
FROM plausible WHERE dep_time IS NOT NULL AND arr_delay IS NOT NULL GROUP BY ALL;
CREATE TABLE cancelled AS SELECT * FROM plausible WHERE dep_time IS NULL;
