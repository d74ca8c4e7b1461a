// COPY … FROM STDIN (FORMAT binary): columns to rows.
typedef struct source {
  u32 codec;
  u32 scale;              // of a decimal
  const u8 *values;
  const u32 *offsets;     // variable width and lists: rows + 1
  u32 base;               // offset of what stands first in values (in the child, of a list)
  const u8 *valid;        // bits; 0: no NULLs
  u32 valid_shift;        // bit of the first row in valid
  u32 bit_shift;          // bit of the first row in values, of booleans
  const struct source *child;
  u32 oid;                // of a list's element
  u32 reserved[6];
} source;

static inline void to2(u8 *to, u16 v) { v = __builtin_bswap16(v); __builtin_memcpy(to, &v, 2); }
static inline void to4(u8 *to, u32 v) { v = __builtin_bswap32(v); __builtin_memcpy(to, &v, 4); }
static inline void to8(u8 *to, u64 v) { v = __builtin_bswap64(v); __builtin_memcpy(to, &v, 8); }

static inline int bit_of(const u8 *bits, u32 i) { return bits[i >> 3] >> (i & 7) & 1; }

// Where a value is written. `why` tells why it is not.
typedef struct { u8 *p, *end; u32 why; } writer;

// Room for a length and the value behind it, 0 when there is none; an overrun of 16 bytes is always allowed for.
static inline u8 *sized(writer *w, u32 size) {
  if (RARE(size > 0x3FFFFFFF || (u32)(w->end - w->p) < size + 4)) { S.need = size + 4; w->why = FULL; return 0; }
  u8 *at = w->p + 4;
  to4(w->p, size);
  w->p = at + size;
  return at;
}

static int has_zero(const u8 *p, u32 n) {
  for (u32 i = 0; i < n; i++) if (!p[i]) return 1;
  return 0;
}

// Copies text and says what must be looked at closer: 1 a high bit, 2 a zero byte, both perhaps behind the end.
static inline u32 copy_text(u8 *to, const u8 *from, u32 n) {
  u8x16 high = {0}, zero = {0};
  for (u32 i = 0; i < n; i += 16) {
    u8x16 v;
    __builtin_memcpy(&v, from + i, 16);
    __builtin_memcpy(to + i, &v, 16);
    high |= v;
    zero |= (u8x16)(v == 0);
  }
  u64 h[2], z[2];
  __builtin_memcpy(h, &high, 16);
  __builtin_memcpy(z, &zero, 16);
  return (((h[0] | h[1]) & 0x8080808080808080ull) != 0) | ((z[0] | z[1]) != 0) << 1;
}

static inline void put_out_text(writer *w, const u8 *p, u32 n, u32 prefix) {
  u8 *at = sized(w, n + prefix);
  if (!at) return;
  if (prefix) *at++ = 1;
  u32 look = copy_text(at, p, n);
  if (RARE(look & 2) && has_zero(p, n)) w->why = ZERO_BYTE;
  else if (RARE(look & 1) && !is_utf8(p, n)) w->why = NOT_UTF8;
}

static void put_out_uuid(writer *w, const u8 *p, u32 n) {
  u8 *at = sized(w, 16);
  if (!at) return;
  u32 count = 0;
  for (u32 i = 0; i < n; i++) {
    u32 v = nibble(p[i]);
    if (v > 15) {
      if (p[i] == '-' && count && !(count & 3)) continue;
      w->why = NOT_UUID;
      return;
    }
    if (count == 32) { w->why = NOT_UUID; return; }
    at[count >> 1] = (u8)(count & 1 ? at[count >> 1] | v : v << 4);
    count++;
  }
  if (count != 32) w->why = NOT_UUID;
}

// Digits 0 to 9999, the lowest first, to a numeric. `behind`: how many of them stand behind the point.
static void put_out_groups(writer *w, const u16 *groups, i32 count, i32 behind, int minus, u32 scale) {
  i32 low = 0;
  while (count && !groups[count - 1]) count--;
  while (low < count && !groups[low]) low++;
  u8 *at = sized(w, 8 + 2 * (u32)(count - low));
  if (!at) return;
  to2(at, (u16)(count - low));
  to2(at + 2, count > low ? (u16)(count - behind - 1) : 0);
  to2(at + 4, minus && count > low ? 0x4000 : 0);
  to2(at + 6, (u16)scale);
  for (i32 i = count - 1; i >= low; i--, at += 2) to2(at + 8, groups[i]);
}

static void put_out_decimal(writer *w, const source *c, u32 row) {
  wide v;
  u16 groups[16];
  i32 count = 0, part = (i32)(c->scale % 4);
  u32 rest;
  __builtin_memcpy(&v, c->values + row * 16, 16);
  int minus = v.high >> 63;
  if (minus) v = negative(v);
  if (part) {
    v = divide(v, TENS[part], &rest);
    groups[count++] = (u16)(rest * TENS[4 - part]);
  }
  while (RARE(v.high)) {
    v = divide(v, 10000, &rest);
    groups[count++] = (u16)rest;
  }
  // Division of 64 bits is slow here, of 32 bits by a constant it is a multiplication.
  for (; v.low >> 32; v.low /= 100000000) {
    u32 two = (u32)(v.low % 100000000);
    groups[count++] = (u16)(two % 10000);
    groups[count++] = (u16)(two / 10000);
  }
  for (u32 low = (u32)v.low; low; low /= 10000) groups[count++] = (u16)(low % 10000);
  put_out_groups(w, groups, count, (i32)(c->scale + 3) / 4, minus, c->scale);
}

static void put_out_special(writer *w, u16 sign) {
  u8 *at = sized(w, 8);
  if (!at) return;
  to8(at, 0);
  to2(at + 4, sign);
}

// A number in text, of any length, without exponent.
static void put_out_number(writer *w, const u8 *p, u32 n) {
  if (is_text(p, n, "NaN")) { put_out_special(w, 0xC000); return; }
  if (is_text(p, n, "Infinity")) { put_out_special(w, 0xD000); return; }
  if (is_text(p, n, "-Infinity")) { put_out_special(w, 0xF000); return; }
  const u8 *end = p + n, *point;
  int minus = n && *p == '-';
  if (n && (*p == '-' || *p == '+')) p++;
  while (p + 1 < end && *p == '0' && p[1] >= '0' && p[1] <= '9') p++;
  for (point = p; point < end && *point != '.'; point++) {}
  i32 whole = (i32)(point - p), scale = point < end ? (i32)(end - point) - 1 : 0;
  for (const u8 *q = p; q < end; q++) if ((*q < '0' || *q > '9') && q != point) { w->why = NOT_NUMERIC; return; }
  if (whole + scale == 0 || whole > 131072 || scale > 16383) { w->why = NOT_NUMERIC; return; }
  i32 before = (whole + 3) / 4, behind = (scale + 3) / 4, count = before + behind;
  u8 *at = sized(w, 8 + 2 * (u32)count);
  if (!at) return;
  i32 first = -1, last = -1;
  for (i32 g = 0; g < count; g++) {
    u32 d = 0;
    for (i32 k = 0; k < 4; k++) {
      i32 i = g < before ? whole - 4 * (before - g) + k : 4 * (g - before) + k;
      int there = g < before ? i >= 0 : i < scale;
      d = d * 10 + (there ? (u32)((g < before ? p : point + 1)[i] - '0') : 0);
    }
    if (d && first < 0) first = g;
    if (d) last = g;
    if (first >= 0) to2(at + 8 + 2 * (g - first), (u16)d);
  }
  i32 kept = first < 0 ? 0 : last - first + 1;
  to4(at - 4, 8 + 2 * (u32)kept);
  to2(at, (u16)kept);
  to2(at + 2, kept ? (u16)(before - first - 1) : 0);
  to2(at + 4, minus && kept ? 0x4000 : 0);
  to2(at + 6, (u16)scale);
  w->p = at + 8 + 2 * kept;
}

static inline void put_out4(writer *w, u32 v) { u8 *at = sized(w, 4); if (at) to4(at, v); }
static inline void put_out8(writer *w, u64 v) { u8 *at = sized(w, 8); if (at) to8(at, v); }

static void put_out_date(writer *w, i32 days) {
  if (days < -2451545 + TO_UNIX_DAYS || days > 2145031948) { w->why = OUT_OF_RANGE; return; }
  put_out4(w, (u32)(days - TO_UNIX_DAYS));
}

static void put_out_timestamp(writer *w, i64 us) {
  if (us < -211813488000000000ll + TO_UNIX_US) { w->why = OUT_OF_RANGE; return; }
  put_out8(w, (u64)(us - TO_UNIX_US));
}

static void put_out_list(writer *w, const source *c, u32 row);

static inline void put_out(writer *w, const source *c, u32 row) {
  u8 *at;
  const u8 *p = 0;
  u32 n = 0;
  if (RARE(c->valid && !bit_of(c->valid, row + c->valid_shift))) {
    if (w->end - w->p < 4) { S.need = 4; w->why = FULL; return; }
    to4(w->p, 0xFFFFFFFF);
    w->p += 4;
    return;
  }
  if (c->offsets) {
    p = c->values + (c->offsets[row] - c->base);
    n = c->offsets[row + 1] - c->offsets[row];
  }
  switch (c->codec) {
    case BOOL: if ((at = sized(w, 1))) *at = (u8)bit_of(c->values, row + c->bit_shift); return;
    case INT2: if ((at = sized(w, 2))) to2(at, ((const u16 *)c->values)[row]); return;
    case INT4: case FLOAT4: put_out4(w, ((const u32 *)c->values)[row]); return;
    case INT8: case FLOAT8: put_out8(w, ((const u64 *)c->values)[row]); return;
    case OID: if (((const u64 *)c->values)[row] >> 32) w->why = OUT_OF_RANGE; else put_out4(w, ((const u32 *)c->values)[row * 2]); return;
    case NUMERIC: put_out_decimal(w, c, row); return;
    case NUMERIC_TEXT: put_out_number(w, p, n); return;
    case STRING: put_out_text(w, p, n, 0); return;
    case JSONB: put_out_text(w, p, n, 1); return;
    case BYTES: if ((at = sized(w, n))) copy_wide(at, p, n); return;
    case UUID: put_out_uuid(w, p, n); return;
    case DATE: put_out_date(w, ((const i32 *)c->values)[row]); return;
    case TIMESTAMP: put_out_timestamp(w, ((const i64 *)c->values)[row]); return;
    case TIME: put_out8(w, ((const u64 *)c->values)[row]); return;
    case LIST: put_out_list(w, c, row); return;
    default: w->why = broken(90);
  }
}

static void put_out_element(writer *w, const source *c, u32 row) { put_out(w, c, row); }

static void put_out_list(writer *w, const source *c, u32 row) {
  u32 first = c->offsets[row] - c->base, count = c->offsets[row + 1] - c->offsets[row];
  u8 *start = w->p, *at = sized(w, count ? 20 : 12);
  if (!at) return;
  u32 nulls = 0;
  for (u32 i = 0; c->child->valid && i < count; i++) nulls |= !bit_of(c->child->valid, first + i + c->child->valid_shift);
  to4(at, count ? 1 : 0);
  to4(at + 4, nulls);
  to4(at + 8, c->oid);
  if (count) { to4(at + 12, count); to4(at + 16, 1); }
  for (u32 i = 0; i < count && !w->why; i++) put_out_element(w, c->child, first + i);
  to4(start, (u32)(w->p - start) - 4);
}

// Encodes rows from S.row up to S.max_rows into `room` bytes at `output`; S.bytes says how many are written.
EXPORT(encode_rows) void encode_rows(const source *columns, u32 count, u8 *output, u32 room) {
  writer w = {output, output + room, OK};
  S.status = ENDED_INPUT;
  for (; S.row < S.max_rows; S.row++) {
    u8 *start = w.p;
    u32 i = 0;
    if (room - (u32)(start - output) < 2) { S.need = 2; w.why = FULL; }
    else {
      to2(start, (u16)count);
      w.p += 2;
      for (; i < count && !w.why; i++) put_out(&w, columns + i, S.row);
    }
    if (!RARE(w.why)) continue;
    if (w.why == FULL) S.need += (u32)(w.p - start);
    w.p = start;
    if (w.why == FULL) { S.status = ENDED_COLUMN; break; }
    if (w.why == BROKEN) { S.status = ENDED_BROKEN; break; }
    if (!refuse(0, S.row, i - 1, w.why)) { S.status = ENDED_ROWS; break; }
    w.why = OK;
  }
  S.bytes = (u32)(w.p - output);
}
