/* DataFlare's record lane for C: the little of Extism that a module of JSON lines needs. Any Extism PDK does as well.
 *
 * Exports take nothing and return 0, or a code of df_fail (1 rows, 2 try later, 3 configuration, 4 for good).
 * Every block handed to the host is a fresh one: using one twice traps.
 */
#ifndef DATAFLARE_RECORDS_H
#define DATAFLARE_RECORDS_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define DF_EXPORT(name) __attribute__((export_name(#name), used))
#define DF_KERNEL(name) __attribute__((import_module("extism:host/env"), import_name(#name)))
#define DF_USER(name) __attribute__((import_module("extism:host/user"), import_name(#name)))

DF_KERNEL(input_length) uint64_t df_x_input_length(void);
DF_KERNEL(input_load_u8) uint32_t df_x_input_load_u8(uint64_t at);
DF_KERNEL(input_load_u64) uint64_t df_x_input_load_u64(uint64_t at);
DF_KERNEL(alloc) uint64_t df_x_alloc(uint64_t size);
DF_KERNEL(length) uint64_t df_x_length(uint64_t block);
DF_KERNEL(load_u8) uint32_t df_x_load_u8(uint64_t at);
DF_KERNEL(store_u8) void df_x_store_u8(uint64_t at, uint32_t byte);
DF_KERNEL(store_u64) void df_x_store_u64(uint64_t at, uint64_t word);
DF_KERNEL(output_set) void df_x_output_set(uint64_t block, uint64_t size);
DF_KERNEL(error_set) void df_x_error_set(uint64_t block);
DF_KERNEL(config_get) uint64_t df_x_config_get(uint64_t key);
DF_KERNEL(log_info) void df_x_log_info(uint64_t text);                          /* host: [log] */
DF_KERNEL(http_request) uint64_t df_x_http_request(uint64_t request, uint64_t body);  /* net */
DF_KERNEL(http_status_code) int32_t df_x_http_status_code(void);
DF_USER(dataflare_metric) void df_x_metric(uint64_t name, double value);        /* host: [metric] */
DF_USER(dataflare_clock) int64_t df_x_clock(void);                              /* host: [clock] */
DF_USER(dataflare_state_get) uint64_t df_x_state_get(uint64_t key);             /* state; 0: nothing there */
DF_USER(dataflare_state_put) void df_x_state_put(uint64_t key, uint64_t value);

typedef uint64_t __attribute__((aligned(1))) df_word;

static inline uint32_t df_length(const char *text) { uint32_t n = 0; while (text[n]) n++; return n; }

/* A fresh block with these bytes. */
static inline uint64_t df_block(const void *data, uint32_t size) {
    const uint8_t *p = data;
    uint64_t block = df_x_alloc(size);
    uint32_t i = 0;
    for (; i + 8 <= size; i += 8) df_x_store_u64(block + i, *(const df_word *)(p + i));
    for (; i < size; i++) df_x_store_u8(block + i, p[i]);
    return block;
}

/* The input, up to `room` bytes of it; returns how long it is. */
static inline uint32_t df_input(uint8_t *to, uint32_t room) {
    uint32_t size = (uint32_t)df_x_input_length(), n = size < room ? size : room, i = 0;
    for (; i + 8 <= n; i += 8) *(df_word *)(to + i) = df_x_input_load_u64(i);
    for (; i < n; i++) to[i] = (uint8_t)df_x_input_load_u8(i);
    return size;
}

static inline void df_output(const void *data, uint32_t size) { df_x_output_set(df_block(data, size), size); }
static inline int32_t df_fail(int32_t code, const char *text) { return df_x_error_set(df_block(text, df_length(text))), code; }

/* The bytes of a block. */
static inline uint32_t df_take(uint64_t block, uint8_t *to, uint32_t room) {
    uint32_t size = (uint32_t)df_x_length(block), n = size < room ? size : room;
    for (uint32_t i = 0; i < n; i++) to[i] = (uint8_t)df_x_load_u8(block + i);
    return size;
}
#endif
