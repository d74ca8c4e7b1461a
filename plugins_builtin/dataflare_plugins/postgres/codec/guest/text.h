// Values as the server's output functions write them: DateStyle ISO, bytea_output hex. Text that is not of its type is broken.
typedef struct { const u8 *p, *end; int ok; } reader;

static inline int next_is(reader *r, u8 c) {
  if (r->p < r->end && *r->p == c) { r->p++; return 1; }
  return 0;
}

// A number of at least `least` digits and at most `most`, which fits 64 bits.
static u64 digits(reader *r, u32 least, u32 most) {
  u64 v = 0;
  u32 n = 0;
  while (r->p < r->end && *r->p >= '0' && *r->p <= '9' && n < most) { v = v * 10 + (*r->p++ - '0'); n++; }
  if (n < least) r->ok = 0;
  return v;
}

static int is_text(const u8 *p, u32 n, const char *word) {
  u32 i = 0;
  for (; word[i]; i++) if (i >= n || p[i] != (u8)word[i]) return 0;
  return i == n;
}

static u32 text_whole(column *c, u32 row, const u8 *p, u32 n) {
  reader r = {p, p + n, 1};
  int minus = next_is(&r, '-');
  u64 v = digits(&r, 1, 19);
  u64 limit = c->codec == INT2 ? 0x8000 : c->codec == INT4 ? 0x80000000u : c->codec == OID ? 0x100000000ull : 0x8000000000000000ull;
  if (!r.ok || r.p != r.end || v > limit || (v == limit && !minus) || (minus && c->codec == OID)) return broken(40);
  if (minus) v = -v;
  if (c->codec == INT2) put2(c, row, (u16)v);
  else if (c->codec == INT4) put4(c, row, (u32)v);
  else put8(c, row, v);
  return OK;
}

static u32 text_decimal(column *c, u32 row, const u8 *p, u32 n) {
  if (is_text(p, n, "NaN")) return NOT_A_NUMBER;
  if (is_text(p, n, "Infinity")) return INFINITE;
  if (is_text(p, n, "-Infinity")) return MINUS_INFINITE;
  reader r = {p, p + n, 1};
  int minus = next_is(&r, '-'), point = 0;
  u32 behind = 0, seen = 0;
  wide sum = {0, 0};
  for (; r.p < r.end; r.p++) {
    if (*r.p == '.' && !point) { point = 1; continue; }
    if (*r.p < '0' || *r.p > '9') return broken(41);
    if (!less(sum, POWERS[37])) return OUT_OF_RANGE;
    sum = times(sum, 10, *r.p - '0');
    behind += (u32)point;
    seen = 1;
  }
  if (!seen) return broken(42);
  if (behind > c->scale) return OUT_OF_RANGE;
  for (; behind < c->scale; behind++) {
    if (!less(sum, POWERS[37])) return OUT_OF_RANGE;
    sum = times(sum, 10, 0);
  }
  return put_decimal(c, row, sum, minus);
}

// Days since 1970-01-01 of a date of the Gregorian calendar, extended backwards; year 0 is 1 BC.
static i64 days_of(i64 year, u32 month, u32 day) {
  year -= month <= 2;
  i64 era = (year >= 0 ? year : year - 399) / 400;
  u32 of_era = (u32)(year - era * 400), of_year = (153 * (month > 2 ? month - 3 : month + 9) + 2) / 5 + day - 1;
  return era * 146097 + (i64)of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719468;
}

// The date's parts; the era comes last in the text, so the year is settled by the caller.
static void read_date(reader *r, i64 *year, u32 *month, u32 *day) {
  *year = (i64)digits(r, 4, 7);
  if (!next_is(r, '-')) r->ok = 0;
  *month = (u32)digits(r, 2, 2);
  if (!next_is(r, '-')) r->ok = 0;
  *day = (u32)digits(r, 2, 2);
  if (*month < 1 || *month > 12 || *day < 1 || *day > 31) r->ok = 0;
}

static void read_era(reader *r, i64 *year) {
  if (r->end - r->p == 3 && is_text(r->p, 3, " BC")) { *year = 1 - *year; r->p += 3; }
  if (r->p != r->end) r->ok = 0;
}

static u64 read_time(reader *r) {
  u64 us = digits(r, 2, 2) * 3600;
  if (!next_is(r, ':')) r->ok = 0;
  us += digits(r, 2, 2) * 60;
  if (!next_is(r, ':')) r->ok = 0;
  us = (us + digits(r, 2, 2)) * 1000000;
  if (next_is(r, '.')) {
    const u8 *first = r->p;
    u64 part = digits(r, 1, 6);
    for (u32 n = (u32)(r->p - first); n < 6; n++) part *= 10;
    us += part;
  }
  return us;
}

// +HH, +HH:MM or +HH:MM:SS, in microseconds.
static i64 read_zone(reader *r) {
  int minus = next_is(r, '-');
  if (!minus && !next_is(r, '+')) { r->ok = 0; return 0; }
  u64 s = digits(r, 2, 2) * 3600;
  if (next_is(r, ':')) s += digits(r, 2, 2) * 60;
  if (next_is(r, ':')) s += digits(r, 2, 2);
  return (minus ? -(i64)s : (i64)s) * 1000000;
}

static u32 infinite(const u8 *p, u32 n) {
  return is_text(p, n, "infinity") ? INFINITE : is_text(p, n, "-infinity") ? MINUS_INFINITE : OK;
}

static u32 text_date(column *c, u32 row, const u8 *p, u32 n) {
  u32 why = infinite(p, n), month, day;
  if (why) return why;
  i64 year;
  reader r = {p, p + n, 1};
  read_date(&r, &year, &month, &day);
  read_era(&r, &year);
  if (!r.ok) return broken(43);
  put4(c, row, (u32)days_of(year, month, day));
  return OK;
}

// `scale` of a timestamp's column tells whether there is a zone.
static u32 text_timestamp(column *c, u32 row, const u8 *p, u32 n) {
  u32 why = infinite(p, n), month, day;
  if (why) return why;
  i64 year;
  reader r = {p, p + n, 1};
  read_date(&r, &year, &month, &day);
  if (!next_is(&r, ' ')) return broken(44);
  u64 us = read_time(&r);
  i64 zone = c->scale ? read_zone(&r) : 0;
  read_era(&r, &year);
  if (!r.ok) return broken(45);
  i64 days = days_of(year, month, day);
  if (days >= 106751990 || days <= -106751990) return OUT_OF_RANGE;
  put8(c, row, (u64)(days * (i64)DAY_US + (i64)us - zone));
  return OK;
}

static u32 text_time(column *c, u32 row, const u8 *p, u32 n) {
  reader r = {p, p + n, 1};
  u64 us = read_time(&r);
  if (!r.ok || r.p != r.end) return broken(46);
  return put_time(c, row, us);
}

static inline u32 nibble(u8 c) { return NIBBLES[c]; }

static u32 text_bytes(column *c, u32 row, const u8 *p, u32 n) {
  if (n < 2 || n % 2 || p[0] != '\\' || p[1] != 'x') return broken(47);
  u32 at = c->offsets[row], size = (n - 2) / 2;
  if (size > c->capacity - at) return full(c, at + size);
  u8 *to = c->values + at;
  for (u32 i = 0; i < size; i++) {
    u32 high = nibble(p[2 + 2 * i]), low = nibble(p[3 + 2 * i]);
    if (high > 15 || low > 15) return broken(48);
    to[i] = (u8)(high << 4 | low);
  }
  c->offsets[row + 1] = at + size;
  set_valid(c, row);
  return OK;
}

static u32 text_list(column *c, u32 row, const u8 *p, u32 n);

static inline u32 put_text(column *c, u32 row, const u8 *p, u32 n) {
  switch (c->codec) {
    case SKIP: return OK;
    case BOOL: if (n != 1 || (*p != 't' && *p != 'f')) return broken(49); put_bool(c, row, *p == 't'); return OK;
    case INT2: case INT4: case INT8: case OID: return text_whole(c, row, p, n);
    case NUMERIC: return text_decimal(c, row, p, n);
    case STRING: return put_string(c, row, p, n);
    case BYTES: return text_bytes(c, row, p, n);
    case DATE: return text_date(c, row, p, n);
    case TIMESTAMP: return text_timestamp(c, row, p, n);
    case TIME: return text_time(c, row, p, n);
    case LIST: return text_list(c, row, p, n);
    default: return broken(50);  // it was to come in binary
  }
}

// An element in quotes, up to the closing one. Strings lose their backslashes on the way; of the rest only bytea has one.
static u32 quoted(column *c, u32 row, reader *r) {
  const u8 *first = r->p;
  if (c->codec != STRING) {
    while (r->p < r->end && *r->p != '"') r->p++;
    if (r->p == r->end) return broken(51);
    u32 n = (u32)(r->p++ - first), escaped = c->codec == BYTES && n > 1 && first[0] == '\\' && first[1] == '\\';
    return put_text(c, row, first + escaped, n - escaped);
  }
  u32 at = c->offsets[row], size = 0;
  u8 *to = c->values + at;
  for (;; size++) {
    if (r->p == r->end) return broken(52);
    u8 byte = *r->p++;
    if (byte == '"') break;
    if (byte == '\\') {
      if (r->p == r->end) return broken(53);
      byte = *r->p++;
    }
    if (size == c->capacity - at) return full(c, at + (u32)(r->end - first));
    to[size] = byte;
  }
  if (!is_utf8(to, size)) return NOT_UTF8;
  c->offsets[row + 1] = at + size;
  set_valid(c, row);
  return OK;
}

static u32 bare(column *c, u32 row, reader *r) {
  const u8 *first = r->p;
  while (r->p < r->end && *r->p != ',' && *r->p != '}') r->p++;
  u32 n = (u32)(r->p - first);
  if (is_text(first, n, "NULL")) { set_null(c, row); return OK; }
  return n ? put_text(c, row, first, n) : broken(54);
}

// {1,NULL,"a \"b\""}, with [lower:upper]= before it when it does not begin at 1.
static u32 text_list(column *c, u32 row, const u8 *p, u32 n) {
  reader r = {p, p + n, 1};
  if (r.p < r.end && *r.p == '[') {
    while (r.p < r.end && *r.p != '=') if (*r.p++ == ']' && r.p < r.end && *r.p == '[') return DIMENSIONS;
    r.p++;
  }
  if (!next_is(&r, '{')) return broken(55);
  u32 start = c->offsets[row], count = 0;
  if (!next_is(&r, '}')) do {
    if (r.p < r.end && *r.p == '{') return DIMENSIONS;
    if (count >= c->capacity - start) return full(c, start + count + 1);
    u32 why = next_is(&r, '"') ? quoted(c->child, start + count, &r) : bare(c->child, start + count, &r);
    if (why) return why;
    count++;
    if (next_is(&r, '}')) break;
  } while (next_is(&r, ',') || (r.ok = 0));
  if (!r.ok || r.p != r.end) return broken(56);
  c->offsets[row + 1] = start + count;
  set_valid(c, row);
  return OK;
}
