// Values in PostgreSQL's binary form.
#define TO_UNIX_US 946684800000000ll  // PostgreSQL counts from 2000-01-01
#define TO_UNIX_DAYS 10957
#define DAY_US 86400000000ull

static u32 put_date(column *c, u32 row, i32 days) {
  if (RARE(days == 0x7FFFFFFF)) return INFINITE;
  if (RARE(days == (i32)0x80000000)) return MINUS_INFINITE;
  if (RARE(days > 0x7FFFFFFF - TO_UNIX_DAYS)) return OUT_OF_RANGE;
  put4(c, row, (u32)(days + TO_UNIX_DAYS));
  return OK;
}

static u32 put_timestamp(column *c, u32 row, i64 us) {
  if (RARE(us == 0x7FFFFFFFFFFFFFFFll)) return INFINITE;
  if (RARE(us == (i64)0x8000000000000000ull)) return MINUS_INFINITE;
  if (RARE(us > 0x7FFFFFFFFFFFFFFFll - TO_UNIX_US)) return OUT_OF_RANGE;
  put8(c, row, (u64)(us + TO_UNIX_US));
  return OK;
}

static u32 put_time(column *c, u32 row, u64 us) {
  if (RARE(us >= DAY_US)) return OUT_OF_RANGE;  // 24:00:00 is a time to PostgreSQL alone
  put8(c, row, us);
  return OK;
}

static u32 put_uuid(column *c, u32 row, const u8 *p) {
  static const char hex[] = "0123456789abcdef";
  u32 at = c->offsets[row];
  if (RARE(36 > c->capacity - at)) return full(c, at + 36);
  u8 *to = c->values + at;
  for (u32 i = 0; i < 16; i++) {
    if (i == 4 || i == 6 || i == 8 || i == 10) *to++ = '-';
    *to++ = hex[p[i] >> 4];
    *to++ = hex[p[i] & 15];
  }
  c->offsets[row + 1] = at + 36;
  set_valid(c, row);
  return OK;
}

static u32 put_list(column *c, u32 row, const u8 *p, u32 n);

#define SIZED(size) if (RARE(n != (size))) return broken(20)
static inline u32 put_binary(column *c, u32 row, const u8 *p, u32 n) {
  switch (c->codec) {
    case SKIP: return OK;
    case BOOL: SIZED(1); put_bool(c, row, *p != 0); return OK;
    case INT2: SIZED(2); put2(c, row, be16(p)); return OK;
    case INT4: case FLOAT4: SIZED(4); put4(c, row, be32(p)); return OK;
    case INT8: case FLOAT8: SIZED(8); put8(c, row, be64(p)); return OK;
    case OID: SIZED(4); put8(c, row, be32(p)); return OK;
    case NUMERIC: return put_numeric(c, row, p, n);
    case NUMERIC_TEXT: return put_numeric_text(c, row, p, n);
    case STRING: return put_string(c, row, p, n);
    case BYTES: return put_bytes(c, row, p, n);
    case JSONB: if (RARE(n < 1 || *p != 1)) return broken(21); return put_string(c, row, p + 1, n - 1);
    case UUID: SIZED(16); return put_uuid(c, row, p);
    case DATE: SIZED(4); return put_date(c, row, (i32)be32(p));
    case TIMESTAMP: SIZED(8); return put_timestamp(c, row, (i64)be64(p));
    case TIME: SIZED(8); return put_time(c, row, be64(p));
    case LIST: return put_list(c, row, p, n);
    default: return broken(22);  // it was to come as text
  }
}

static u32 put_element(column *c, u32 row, const u8 *p, u32 n) { return put_binary(c, row, p, n); }

// dimensions, has NULLs, element's type, then length and lower bound of each dimension, then the elements
static u32 put_list(column *c, u32 row, const u8 *p, u32 n) {
  const u8 *end = p + n;
  if (n < 12) return broken(23);
  u32 dimensions = be32(p), start = c->offsets[row], count = 0;
  if (dimensions > 1) return DIMENSIONS;
  p += 12;
  if (dimensions) {
    if (end - p < 8) return broken(24);
    count = be32(p);
    p += 8;
    if (count > (u32)(end - p) / 4) return broken(25);
  }
  if (count > c->capacity - start) return full(c, start + count);
  for (u32 i = 0; i < count; i++) {
    if (end - p < 4) return broken(26);
    u32 size = be32(p);
    p += 4;
    if (size == 0xFFFFFFFF) { set_null(c->child, start + i); continue; }
    if (size > (u32)(end - p)) return broken(27);
    u32 why = put_element(c->child, start + i, p, size);
    if (why) return why;
    p += size;
  }
  if (p != end) return broken(28);
  c->offsets[row + 1] = start + count;
  set_valid(c, row);
  return OK;
}
