// Decimals: numbers of up to 38 digits in 128 bits, and PostgreSQL's numeric, whose digits are 0 to 9999.
typedef struct { u64 low, high; } wide;

static const u32 TENS[5] = {1, 10, 100, 1000, 10000};

// Filled in by begin().
static wide POWERS[39];  // 10^n
static u8 NIBBLES[256];  // value of a hexadecimal digit, 16 of any other character; by table, for its branches would be guesses

// a * by + add; the caller knows that it fits.
static inline wide times(wide a, u32 by, u32 add) {
  u64 t0 = (a.low & 0xFFFFFFFF) * by + add, t1 = (a.low >> 32) * by + (t0 >> 32);
  return (wide){(t0 & 0xFFFFFFFF) | t1 << 32, a.high * by + (t1 >> 32)};
}

// a / by, the remainder beside it; by < 2^32.
static inline wide divide(wide a, u32 by, u32 *rest) {
  u64 r = a.high % by, t1 = r << 32 | a.low >> 32, t0 = (t1 % by) << 32 | (a.low & 0xFFFFFFFF);
  *rest = (u32)(t0 % by);
  return (wide){(t1 / by) << 32 | t0 / by, a.high / by};
}

static inline int less(wide a, wide b) { return a.high < b.high || (a.high == b.high && a.low < b.low); }
static inline wide negative(wide a) { return (wide){-a.low, ~a.high + (a.low == 0)}; }

EXPORT(begin) void begin(void) {
  POWERS[0] = (wide){1, 0};
  for (u32 i = 1; i < 39; i++) POWERS[i] = times(POWERS[i - 1], 10, 0);
  for (u32 i = 0; i < 256; i++) NIBBLES[i] = (u8)(i >= '0' && i <= '9' ? i - '0' : (i | 32) >= 'a' && (i | 32) <= 'f' ? (i | 32) - 'a' + 10 : 16);
}

static inline u32 put_decimal(column *c, u32 row, wide magnitude, int minus) {
  if (!less(magnitude, POWERS[c->precision])) return OUT_OF_RANGE;
  if (minus) magnitude = negative(magnitude);
  __builtin_memcpy(c->values + row * 16, &magnitude, 16);
  set_valid(c, row);
  return OK;
}

typedef struct { u32 count, scale; i32 weight; int minus; const u8 *digits; } numeric;

static u32 read_numeric(const u8 *p, u32 n, numeric *v) {
  if (n < 8) return broken(10);
  u32 sign = be16(p + 4);
  *v = (numeric){be16(p), be16(p + 6), (i16)be16(p + 2), sign == 0x4000, p + 8};
  if (sign == 0xC000) return NOT_A_NUMBER;
  if (sign == 0xD000) return INFINITE;
  if (sign == 0xF000) return MINUS_INFINITE;
  if ((sign && sign != 0x4000) || n != 8 + 2 * v->count || v->scale > 0x3FFF) return broken(11);
  return OK;
}

// Group `power` of the number: its digit times 10000^power.
static inline u32 group(const numeric *v, i32 power) {
  u32 i = (u32)(v->weight - power);
  return i < v->count ? be16(v->digits + 2 * i) : 0;
}

static u32 put_numeric(column *c, u32 row, const u8 *p, u32 n) {
  numeric v;
  u32 why = read_numeric(p, n, &v);
  if (RARE(why)) return why;
  i32 whole = (i32)(c->scale / 4), part = (i32)(c->scale % 4);
  if (RARE(v.weight > 9 && v.count)) return OUT_OF_RANGE;
  if (!v.count) v.weight = -1;
  // Digits behind the scale would be lost; a column of this scale has none.
  if (RARE((i32)v.count - 1 - v.weight > whole + (part != 0))) return OUT_OF_RANGE;
  u64 small = 0;
  i32 power = v.weight;
  for (u32 i = 0; i < 4 && power >= -whole; i++, power--) {
    u32 d = group(&v, power);
    if (RARE(d > 9999)) return broken(12);
    small = small * 10000 + d;
  }
  wide sum = {small, 0};
  for (; power >= -whole; power--) {
    u32 d = group(&v, power);
    if (d > 9999) return broken(12);
    if (!less(sum, POWERS[34])) return OUT_OF_RANGE;
    sum = times(sum, 10000, d);
  }
  if (part) {
    u32 d = power == -whole - 1 ? group(&v, power) : 0, cut = TENS[4 - part];
    if (RARE(d > 9999)) return broken(12);
    if (RARE(d % cut || !less(sum, POWERS[38 - part]))) return OUT_OF_RANGE;
    sum = times(sum, TENS[part], d / cut);
  }
  return put_decimal(c, row, sum, v.minus);
}

static inline u8 *four(u8 *to, u32 d) {
  to[0] = '0' + d / 1000, to[1] = '0' + d / 100 % 10, to[2] = '0' + d / 10 % 10, to[3] = '0' + d % 10;
  return to + 4;
}

// All its digits, as the server writes them.
static u32 put_numeric_text(column *c, u32 row, const u8 *p, u32 n) {
  numeric v;
  u32 why = read_numeric(p, n, &v);
  if (why == NOT_A_NUMBER) return put_bytes(c, row, (const u8 *)"NaN             ", 3);
  if (why == INFINITE) return put_bytes(c, row, (const u8 *)"Infinity        ", 8);
  if (why == MINUS_INFINITE) return put_bytes(c, row, (const u8 *)"-Infinity       ", 9);
  if (why) return why;
  u32 at = c->offsets[row], need = (v.weight > 0 ? (u32)v.weight * 4 : 0) + v.scale + 16;
  if (RARE(need > c->capacity - at)) return full(c, at + need);
  for (u32 i = 0; i < v.count; i++) if (be16(v.digits + 2 * i) > 9999) return broken(13);
  u8 *to = c->values + at;
  if (v.minus) *to++ = '-';
  u8 *first = to;
  for (i32 power = v.weight; power >= 0; power--) to = four(to, group(&v, power));
  u8 *digit = first;
  while (digit < to - 1 && *digit == '0') digit++;
  u32 kept = (u32)(to - digit);
  if (digit > first) __builtin_memmove(first, digit, kept);
  to = first + kept;
  if (!kept) *to++ = '0';
  if (v.scale) {
    *to++ = '.';
    u8 *stop = to + v.scale;
    for (i32 power = -1; to < stop; power--) to = four(to, power <= v.weight ? group(&v, power) : 0);
    to = stop;
  }
  c->offsets[row + 1] = (u32)(to - c->values);
  set_valid(c, row);
  return OK;
}
