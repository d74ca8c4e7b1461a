/* luhn: whether the check digit of a card's number is right, in a column of its own. What is no number is a bad row. */
#include "dataflare.h"

DF_EXPORT(df_describe) const df_bytes *df_describe(void) {
    return df_says("{\"kind\": \"processor\", \"reads\": [\"card\"], \"outputs\": [{\"rows\": \"same\", \"columns\": [{\"name\": \"valid\", \"format\": \"b\"}]}]}");
}

DF_EXPORT(df_init) uint32_t df_init(const df_bytes *config) {
    (void)config;
    return 0;
}

DF_EXPORT(df_process) uint32_t df_process(ArrowArray *in, ArrowSchema *schema, df_out *out) {
    if (schema->children[0]->format[0] != 'u') return df_fail(DF_CONFIG, "a card's number is a text");
    const ArrowArray *card = in->children[0];
    uint32_t rows = (uint32_t)in->length;
    ArrowArray *table = df_table(rows, 1), *valid = df_array(rows, 2, 0);
    uint8_t *bits = df_bits(rows);
    if (!table || !valid || !bits) return df_fail(DF_FATAL, "no memory for the result");
    const int32_t *ends = df_offsets(card);
    const uint8_t *digits = df_text(card);
    for (uint32_t i = 0; i < rows; i++) {
        uint32_t sum = 0;
        for (int32_t at = ends[i + 1] - 1, place = 0; at >= ends[i]; at--, place++) {
            uint32_t digit = digits[at] - '0';
            if (digit > 9) return df_fail(DF_ROWS, "a card's number has digits only");
            if (place & 1) digit = digit * 2 - (digit > 4 ? 9 : 0);
            sum += digit;
        }
        df_set(bits, i, sum % 10 == 0);
    }
    valid->buffers[0] = df_valid(card), valid->buffers[1] = bits;
    table->children[0] = valid;
    out->array = table;
    return 0;
}
