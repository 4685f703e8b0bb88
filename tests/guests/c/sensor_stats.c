// sensor_stats [SIGMAS]: statistics of a CSV series `timestamp,value` from standard input, and
// the values further than SIGMAS (default 3) standard deviations from the mean.
// Keeps the rows in memory: 48 bytes each. Exits with 2 if there is no usable row.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    ROW_MAX = 4096,
    TIMESTAMP_MAX = 40,
    VALUES_MAX = 16 * 1024 * 1024,
    SHOWN_MAX = 10,
};

struct row {
    char timestamp[TIMESTAMP_MAX];
    double value;
};

static struct row *rows;
static size_t rows_used, rows_size;

static int parse(char *line, struct row *row) {
    char *comma = strrchr(line, ','), *end;
    if (!comma) return 0;
    *comma = 0;
    row->value = strtod(comma + 1, &end);
    if (end == comma + 1 || end[strspn(end, " \r\n")] || !isfinite(row->value)) return 0;
    snprintf(row->timestamp, sizeof row->timestamp, "%s", line);
    return 1;
}

static int keep(const struct row *row) {
    if (rows_used == rows_size) {
        size_t size = rows_size ? rows_size * 2 : 1024;
        struct row *more = size > VALUES_MAX ? NULL : realloc(rows, size * sizeof *rows);
        if (!more) return 0;
        rows = more;
        rows_size = size;
    }
    rows[rows_used++] = *row;
    return 1;
}

static int by_value(const void *a, const void *b) {
    double x = ((const struct row *)a)->value, y = ((const struct row *)b)->value;
    return (x > y) - (x < y);
}

static void show(double mean, double deviation, double sigmas) {
    size_t outliers = 0;
    for (size_t i = 0; i < rows_used; i++) {
        double z = deviation > 0 ? (rows[i].value - mean) / deviation : 0;
        if (fabs(z) <= sigmas) continue;
        if (outliers++ < SHOWN_MAX)
            printf("outlier %s %g (%+.2f sigma)\n", rows[i].timestamp, rows[i].value, z);
    }
    printf("outliers %zu\n", outliers);
    qsort(rows, rows_used, sizeof *rows, by_value);
    const struct row *low = rows, *high = rows + rows_used - 1;
    printf("count %zu\nmin %g at %s\nmax %g at %s\n", rows_used, low->value, low->timestamp,
           high->value, high->timestamp);
    double median = (rows[(rows_used - 1) / 2].value + rows[rows_used / 2].value) / 2;
    printf("mean %.3f\nstddev %.3f\nmedian %g\n", mean, deviation, median);
}

int main(int argc, char **argv) {
    static char line[ROW_MAX];
    double sigmas = argc > 1 ? atof(argv[1]) : 3, mean = 0, squares = 0;
    size_t refused = 0;
    struct row row;
    while (fgets(line, sizeof line, stdin)) {
        if (!parse(line, &row)) {
            refused++;
            continue;
        }
        if (!keep(&row)) {
            fprintf(stderr, "sensor_stats: too many rows for this memory\n");
            return 1;
        }
        // Welford: one pass, no loss of digits.
        double delta = row.value - mean;
        mean += delta / (double)rows_used;
        squares += delta * (row.value - mean);
    }
    fprintf(stderr, "%zu rows refused (a header counts as one)\n", refused);
    if (!rows_used) return 2;
    show(mean, sqrt(squares / (double)rows_used), sigmas);
    return 0;
}
