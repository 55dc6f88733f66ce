/* Products of tokens, a tile of 16 x 16 at a time, and what merges cost by them: merge_cost.py. */

#ifndef tpcli_DISTANCES_H
#define tpcli_DISTANCES_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#define TILE 16

typedef float Tile[TILE][TILE];
typedef float Lanes __attribute__((vector_size(32)));
#define WIDTH ((int)(sizeof(Lanes) / sizeof(float)))
#define PARTS (TILE / WIDTH)

/* Points. rows: (count, channels). values: the same in tiles of 16 tokens, channel
   by channel, so that token t's channel c is at [t / 16][c][t % 16]. norms: squared; infinite beyond
   `count`. kept: share of a product that counts, twice. least: what is added to products. */
typedef struct {
    int64_t count, channels, tiles;
    float *rows, *values, *norms, kept, least;
} Points;

static inline const float *tile_of(const Points *points, int64_t tile)
{
    return points->values + tile * TILE * points->channels;
}

/* `rows` into tiles, and their norms. */
static inline void lay_tiles(Points *points)
{
    int64_t n = points->count, channels = points->channels;
    for (int64_t tile = 0; tile < points->tiles; tile++) {
        float *values = points->values + tile * TILE * channels;
        for (int64_t i = 0; i < TILE; i++) {
            int64_t t = tile * TILE + i;
            const float *row = points->rows + t * channels;
            for (int64_t c = 0; c < channels; c++)
                values[c * TILE + i] = t < n ? row[c] : 0;
        }
        Lanes squares[PARTS] = {{0}}; /* summed in the order of `products`: 0 between equals */
        for (int64_t c = 0; c < channels; c++)
            for (int part = 0; part < PARTS; part++) {
                Lanes v;
                memcpy(&v, values + c * TILE + part * WIDTH, sizeof v);
                squares[part] += v * v;
            }
        for (int part = 0; part < PARTS; part++)
            squares[part] += points->least;
        memcpy(points->norms + tile * TILE, squares, sizeof squares);
    }
    for (int64_t t = n; t < points->tiles * TILE; t++)
        points->norms[t] = INFINITY;
}

/* out[i][j] = <a_i, b_j> for the tokens of two tiles. */
static inline void products(const float *a, const float *b, int64_t channels, Tile out)
{
    for (int first = 0; first < TILE; first += 4) {
        Lanes sums[4][PARTS] = {{{0}}};
        for (int64_t c = 0; c < channels; c++)
            for (int i = 0; i < 4; i++)
                for (int part = 0; part < PARTS; part++) {
                    Lanes v;
                    memcpy(&v, b + c * TILE + part * WIDTH, sizeof v);
                    sums[i][part] += a[c * TILE + first + i] * v;
                }
        memcpy(out[first], sums, sizeof sums);
    }
}

/* All products, (n, n); those that are not finite such that their tokens are `far` from others. */
static inline void product_matrix(const Points *points, float far, float *matrix)
{
    int64_t n = points->count;
    for (int64_t s = 0; s < points->tiles; s++)
        for (int64_t t = s; t < points->tiles; t++) {
            Tile p;
            products(tile_of(points, s), tile_of(points, t), points->channels, p);
            for (int64_t i = 0; i < TILE && s * TILE + i < n; i++)
                for (int64_t j = 0; j < TILE && t * TILE + j < n; j++) {
                    int64_t row = s * TILE + i, column = t * TILE + j;
                    float value = p[i][j] + points->least;
                    value = value >= -far ? (value <= far ? value : far) : -far;
                    matrix[row * n + column] = matrix[column * n + row] = value;
                }
        }
}

/* Squared distances between the tokens of two tiles; infinite from a token to itself. */
static inline void tile_distances(const Points *points, int64_t s, int64_t t, Tile out)
{
    products(tile_of(points, s), tile_of(points, t), points->channels, out);
    const float *norms = points->norms + t * TILE;
    for (int i = 0; i < TILE; i++)
        for (int j = 0; j < TILE; j++)
            out[i][j] = points->norms[s * TILE + i] + norms[j] -
                        points->kept * (out[i][j] + points->least);
    if (s == t)
        for (int i = 0; i < TILE; i++)
            out[i][i] = INFINITY;
}

/* What merging each token with its cheapest partner costs: cheapest_merge of merge_cost.py.
   inverse: what stands for 1 / weight of each token, `tiles` full tiles of them. */
static inline void cheapest_merges(const Points *points, const float *inverse, float *cheapest)
{
    for (int64_t i = 0; i < points->tiles * TILE; i++)
        cheapest[i] = INFINITY;
    for (int64_t s = 0; s < points->tiles; s++)
        for (int64_t t = s; t < points->tiles; t++) {
            Tile cost;
            float best[TILE];
            tile_distances(points, s, t, cost);
            memcpy(best, cheapest + t * TILE, sizeof best);
            for (int i = 0; i < TILE; i++) {
                float own = INFINITY, mine = inverse[s * TILE + i];
                for (int j = 0; j < TILE; j++) {
                    cost[i][j] /= mine + inverse[t * TILE + j];
                    best[j] = cost[i][j] < best[j] ? cost[i][j] : best[j];
                }
#pragma omp simd reduction(min : own)
                for (int j = 0; j < TILE; j++)
                    own = cost[i][j] < own ? cost[i][j] : own;
                if (own < cheapest[s * TILE + i])
                    cheapest[s * TILE + i] = own;
            }
            for (int j = 0; j < TILE; j++)
                if (best[j] < cheapest[t * TILE + j])
                    cheapest[t * TILE + j] = best[j];
        }
}

#endif
