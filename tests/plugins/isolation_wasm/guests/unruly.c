/* Does to a batch whose column `n` holds 13 what its configuration says; leaves other rows alone. */
#include "dataflare.h"

static enum { GOOD, SPIN, TRAP, BOMB, DEEP, REFUSE, LATER, FATAL, OUTSIDE, LENGTH, OFFSETS, MIDDLE, SHORT, BUFFERS, CHILDREN, NEGATIVE, HUGE_ROWS } deed;
static const char *const deeds[] = {"good", "spin", "trap", "bomb", "deep", "refuse", "later", "fatal", "outside", "length", "offsets",
                                    "middle", "short", "buffers", "children", "negative", "huge_rows"};

DF_EXPORT(df_describe) const df_bytes *df_describe(void) {
    return df_says("{\"reads\": [\"n\", \"s\"], \"outputs\": [{\"rows\": \"same\", \"columns\": [{\"name\": \"n\", \"format\": \"l\"}, {\"name\": \"s\", \"format\": \"u\"}]}]}");
}

DF_EXPORT(df_init) uint32_t df_init(const df_bytes *config) {
    df_bytes text = df_config_text(config, "do");
    for (uint32_t d = 0; d < sizeof deeds / sizeof *deeds; d++) {
        bool same = df_length(deeds[d]) == text.len;
        for (uint32_t i = 0; same && i < text.len; i++) same = deeds[d][i] == (char)text.ptr[i];
        if (same) return deed = d, 0;
    }
    return df_fail(DF_CONFIG, "'do' is none of\nmy \033[31mdeeds");
}

static volatile uint32_t sink;
static uint32_t fall(uint32_t n) { return sink == 7 ? n : fall(n + sink) * 3 + sink; }

DF_EXPORT(df_process) uint32_t df_process(ArrowArray *in, ArrowSchema *schema, df_out *out) {
    (void)schema;
    uint32_t rows = (uint32_t)in->length;
    bool unlucky = false;
    for (uint32_t i = 0; i < rows; i++) unlucky |= !df_is_null(in->children[0], i) && ((const int64_t *)df_values(in->children[0]))[i] == 13;
    ArrowArray *s = in->children[1];
    out->array = in;
    if (unlucky) switch (deed) {
        case GOOD: break;
        case SPIN: for (;;) sink++;
        case TRAP: __builtin_trap();
        case BOMB: for (;;) if (!df_new(1 << 20)) return df_fail(DF_ROWS, "no memory"); else sink++;
        case DEEP: sink = fall(0); break;
        case REFUSE: return df_fail(DF_ROWS, "13 is \033[31munlucky");
        case LATER: return df_fail(DF_TRY_LATER, "not now");
        case FATAL: return df_fail(DF_FATAL, "never");
        case OUTSIDE: s->buffers[2] = (const void *)0xfffffff0u; break;
        case LENGTH: in->length++, s->length++; break;
        case OFFSETS: s->buffers[1] = (const void *)(uintptr_t)((uint32_t)__builtin_wasm_memory_size(0) * 65536u - 4u); break;
        case MIDDLE: ((int32_t *)s->buffers[1])[rows / 2] = 1 << 30; break;
        case SHORT: s->length = 0; break;
        case BUFFERS: s->n_buffers = 1ll << 40; break;
        case CHILDREN: in->n_children = 1 << 30; break;
        case NEGATIVE: ((int32_t *)s->buffers[1])[rows] = -5; break;
        case HUGE_ROWS: in->length = s->length = 1ll << 40; break;
    }
    return 0;
}
