-- What `dataflare prove orders_cdc.yaml` loads into a scratch PostgreSQL of its own.
CREATE TABLE public.orders (
  id bigint PRIMARY KEY,
  customer text NOT NULL,
  status text NOT NULL DEFAULT 'new',
  total numeric(12, 2) NOT NULL,
  paid boolean NOT NULL DEFAULT false,
  placed_at timestamptz NOT NULL,
  -- Long enough to be stored apart (TOAST): an update of another column does not send it again.
  letter text
);
INSERT INTO public.orders
SELECT i, 'customer ' || i, 'new', i * 1.25, i % 3 = 0, timestamptz '2026-01-01' + i * interval '1 hour',
  CASE WHEN i % 2 = 0 THEN 'dear ' || (SELECT string_agg(md5(i || '-' || j), '') FROM generate_series(1, 100) j) END
FROM generate_series(1, 500) i;
