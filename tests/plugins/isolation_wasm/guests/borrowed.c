/* Gives text whose offsets are another column of what it was given: numbers that nobody has looked at as offsets. */
#include "dataflare.h"
DF_EXPORT(df_describe) const df_bytes *df_describe(void) {
    return df_says("{\"outputs\": [{\"rows\": \"new\", \"columns\": [{\"name\": \"t\", \"format\": \"u\"}]}]}");
}
DF_EXPORT(df_init) uint32_t df_init(const df_bytes *config) { (void)config; return 0; }
DF_EXPORT(df_process) uint32_t df_process(ArrowArray *in, ArrowSchema *schema, df_out *out) {
    const char *format = schema->children[0]->format;
    uint32_t wide = format[0] == 'l' || format[0] == 'U', size = (uint32_t)in->length * (wide ? 8 : 4);
    /* What it was given is text itself: its offsets are one more than its rows. */
    if (format[0] == 'u' || format[0] == 'U') size += wide ? 8 : 4;
    uint32_t rows = in->length ? size / 4 - 1 : 0, last = 0;
    const int32_t *ends = in->length ? in->children[0]->buffers[1] : 0;
    if (ends) last = (uint32_t)ends[rows];
    uint8_t *text = df_new(last + 8);
    ArrowArray *table = df_table(rows, 1), *t = df_array(rows, 3, 0);
    if (!text || !table || !t) return df_fail(DF_FATAL, "no memory");
    for (uint32_t i = 0; i < last; i++) text[i] = 'a';
    t->buffers[1] = ends, t->buffers[2] = text;
    table->children[0] = t;
    out->array = table;
    return 0;
}
