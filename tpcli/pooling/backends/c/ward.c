/* Ward's clustering on the CPU, a sample to a thread: the steps of ward.py, which says what they are
   and why. Tests hold the two together. */

#include "distances.h"
#include "kernels.h"

#include <stdlib.h>

/* Compiled once more for processors with AVX, all that it calls included. */
#if defined(__x86_64__) && defined(__GNUC__) && defined(__gnu_linux__)
#define WIDE __attribute__((flatten, target_clones("fma", "default")))
#else
#define WIDE
#endif

/* A price, not negative, and whose it is, as one number in the order of prices, then of indices. */
typedef uint64_t Offer;

static inline Offer offer(float price, int64_t index)
{
    uint32_t bits; /* of floats that are not negative, in their order */
    price = price > 0 ? price : 0;
    memcpy(&bits, &price, sizeof bits);
    return (Offer)bits << 32 | (uint32_t)index;
}

static inline int64_t offered_by(Offer offer)
{
    return (int64_t)(uint32_t)offer;
}

/* Bring the `count` smallest to the front, in any order: Hoare's selection. */
static void select_smallest(Offer *offers, int64_t n, int64_t count)
{
    int64_t low = 0, high = n - 1;
    while (low < high) {
        Offer pivot = offers[(low + high) / 2];
        int64_t i = low, j = high;
        while (i <= j) {
            while (offers[i] < pivot)
                i++;
            while (offers[j] > pivot)
                j--;
            if (i <= j) {
                Offer swapped = offers[i];
                offers[i++] = offers[j];
                offers[j--] = swapped;
            }
        }
        if (count <= j)
            high = j;
        else if (count >= i)
            low = i;
        else
            break;
    }
}

/* line_up and in_line of order.py: positions decide between costs that rounding tells
   apart. places: `PLACES` for each of all points. */
static inline float line_up(int64_t position, int64_t places, float weight)
{
    return (float)(places - position) / weight;
}

static inline float in_line(float value, int64_t position, int64_t places)
{
    return value + value * ((float)position / (float)places);
}

/* Make the cheapest merges among n of `width` points: root[i] is the one of the n that i ends up
   with. place: their positions among all. norms: room for n. */
static void merge_cheapest(const float *matrix, const float *inverse, int64_t n,
                           const int64_t *place, int64_t width, int64_t merges, const Ward *ward,
                           float *norms, float *price, Offer *offers, int64_t *partner,
                           int64_t *root)
{
    const float kept = 1 - ward->shrink;
    for (int64_t i = 0; i < n; i++)
        norms[i] = matrix[i * n + i];
    for (int64_t i = 0; i < n; i++) {
        const float *row = matrix + i * n;
        float best = INFINITY;
        partner[i] = i ? 0 : 1;
        for (int64_t j = 0; j < n; j++) {
            float d = (norms[i] - kept * row[j]) + (norms[j] - kept * row[j]);
            float cost = d / (inverse[i] + inverse[j]);
            if (cost < best && j != i) {
                best = cost;
                partner[i] = j;
            }
        }
        price[i] = in_line(best, place[i], ward->places * width);
    }
    for (int64_t i = 0; i < n; i++) {
        int mutual = partner[partner[i]] == i;
        if (mutual && place[i] < place[partner[i]]) /* of a reciprocal pair the lower one stays */
            offers[i] = offer(INFINITY, i);
        else
            offers[i] = offer(mutual ? price[i] : ward->reluctance * price[i], i);
        root[i] = i;
    }
    select_smallest(offers, n, merges);
    for (int64_t m = 0; m < merges; m++)
        root[offered_by(offers[m])] = partner[offered_by(offers[m])];
    for (int64_t hops = 1; hops < 2 * merges; hops *= 2)
        for (int64_t i = 0; i < n; i++)
            root[i] = root[root[i]];
}

/* The place of each cluster in reading order among all, single tokens too: how many. of_token: the
   cluster of each token, -1 for a single one. */
static int64_t read_places(int64_t n, const int64_t *of_token, int64_t clusters, int64_t *place)
{
    int64_t number = 0;
    for (int64_t c = 0; c < clusters; c++)
        place[c] = -1;
    for (int64_t t = 0; t < n; t++)
        if (of_token[t] < 0)
            number++;
        else if (place[of_token[t]] < 0)
            place[of_token[t]] = number++;
    return number;
}

/* Products of the means of clusters from those of their members: (n, n) -> (k, k), in place. */
static void merged_products(float *matrix, float *rows, float *weights, int64_t n, int64_t k,
                            const int64_t *cluster, float *total)
{
    memset(total, 0, k * sizeof *total);
    for (int64_t i = 0; i < n; i++)
        total[cluster[i]] += weights[i];
    memset(rows, 0, k * n * sizeof *rows);
    for (int64_t i = 0; i < n; i++) {
        float share = weights[i] / total[cluster[i]];
        for (int64_t j = 0; j < n; j++)
            rows[cluster[i] * n + j] += share * matrix[i * n + j];
    }
    memset(matrix, 0, k * k * sizeof *matrix);
    for (int64_t a = 0; a < k; a++)
        for (int64_t j = 0; j < n; j++)
            matrix[a * k + cluster[j]] += weights[j] / total[cluster[j]] * rows[a * n + j];
    memcpy(weights, total, k * sizeof *weights);
    for (int64_t a = 0; a < k; a++)
        for (int64_t b = 0; b < a; b++) {
            float p = (matrix[a * k + b] + matrix[b * k + a]) / 2;
            matrix[a * k + b] = matrix[b * k + a] = p;
        }
}

static void layer_norm(const float *token, int64_t channels, float epsilon, float *out)
{
    float sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t c = 0; c < channels; c++)
        sum += token[c];
    float mean = sum / channels;
#pragma omp simd reduction(+ : squares)
    for (int64_t c = 0; c < channels; c++)
        squares += (token[c] - mean) * (token[c] - mean);
    float scale = 1 / sqrtf(squares / channels + epsilon);
    for (int64_t c = 0; c < channels; c++)
        out[c] = (token[c] - mean) * scale;
}

/* A token as distances are measured on it. */
static void prepare(const float *restrict token, int64_t channels, const Ward *ward,
                    float *restrict out)
{
    if (ward->normalized)
        layer_norm(token, channels, ward->layer_norm_epsilon, out);
    else
        memcpy(out, token, channels * sizeof *out);
}

/* Sums of channels that are equal modulo `dim`. */
static void sketch_of(const float *restrict token, int64_t channels, int64_t dim,
                      float *restrict out)
{
    memset(out, 0, dim * sizeof *out);
    for (; channels >= dim; channels -= dim, token += dim)
        for (int64_t c = 0; c < dim; c++)
            out[c] += token[c];
    for (int64_t c = 0; c < channels; c++)
        out[c] += token[c];
}

/* What one sample needs; `sketch` where not all tokens take part. */
typedef struct {
    Points sketch, points;
    float *token, *cheapest, *mass, *inverse, *total, *norms, *matrix, *rows;
    int64_t *chosen, *partner, *root, *place, *first;
    Offer *offers;
    uintptr_t end;
} Room;

static void *room_for(Room *room, int64_t count, size_t size)
{
    uintptr_t start = room->end;
    room->end += (count * size + 63) / 64 * 64;
    return (void *)start;
}

static Points points_in(Room *room, int64_t count, int64_t channels, float kept, float least)
{
    Points points = {.count = count, .channels = channels, .tiles = (count + TILE - 1) / TILE,
                     .kept = 2 * kept, .least = least};
    points.rows = room_for(room, count * channels, sizeof(float));
    points.values = room_for(room, points.tiles * TILE * channels, sizeof(float));
    points.norms = room_for(room, points.tiles * TILE, sizeof(float));
    return points;
}

/* Lay a room out from the address `start`; its size is `end` less `start`. */
static Room lay_out(uintptr_t start, int64_t n, int64_t channels, const Ward *ward)
{
    Room room = {.end = start};
    int64_t padded = n + TILE, m = ward->candidates;
    float kept = 1 - ward->shrink, least = ward->least_product * ward->places * n;
    room.sketch = points_in(&room, m < n ? n : 0, ward->sketch_dim, kept, least);
    room.points = points_in(&room, m, channels, kept, least);
    room.token = room_for(&room, channels, sizeof(float));
    float **floats[] = {&room.cheapest, &room.mass, &room.inverse, &room.total, &room.norms};
    for (size_t i = 0; i < sizeof floats / sizeof *floats; i++)
        *floats[i] = room_for(&room, padded, sizeof(float));
    room.matrix = room_for(&room, m * m, sizeof(float));
    room.rows = room_for(&room, m * m, sizeof(float));
    int64_t **positions[] = {&room.chosen, &room.partner, &room.root, &room.place, &room.first};
    for (size_t i = 0; i < sizeof positions / sizeof *positions; i++)
        *positions[i] = room_for(&room, padded, sizeof(int64_t));
    room.offers = room_for(&room, n, sizeof(Offer));
    return room;
}

/* The tokens that a sketch finds nearest to a partner, ascending. */
static void near_a_partner(Room *room, const float *z, int64_t stride, int64_t channels,
                           const float *weights, const Ward *ward)
{
    Points *sketch = &room->sketch;
    int64_t n = sketch->count, count = ward->candidates, dim = ward->sketch_dim;
    for (int64_t t = 0; t < n; t++) {
        prepare(z + t * stride, channels, ward, room->token);
        sketch_of(room->token, channels, dim, sketch->rows + t * dim);
    }
    lay_tiles(sketch);
    for (int64_t t = 0; t < sketch->tiles * TILE; t++)
        room->inverse[t] = t < n ? line_up(t, ward->places * n, weights[t]) : 1;
    cheapest_merges(sketch, room->inverse, room->cheapest);
    for (int64_t t = 0; t < n; t++)
        room->offers[t] = offer(in_line(room->cheapest[t], t, ward->places * n), t);
    select_smallest(room->offers, n, count);
    memset(room->root, 0, n * sizeof *room->root);
    for (int64_t i = 0; i < count; i++)
        room->root[offered_by(room->offers[i])] = 1;
    for (int64_t t = 0, i = 0; t < n; t++)
        if (room->root[t])
            room->chosen[i++] = t;
}

/* -1 where a weight is not positive and finite. */
WIDE static int cluster_sample(Room *room, Shape shape, const float *z, int64_t stride,
                               const float *weights, const Ward *ward, int64_t *labels)
{
    int64_t n = shape.tokens, m = ward->candidates, live = m;
    for (int64_t t = 0; t < n; t++)
        if (!(weights[t] > 0 && weights[t] < INFINITY))
            return -1;
    if (m < n)
        near_a_partner(room, z, stride, shape.channels, weights, ward);
    int64_t *of_token = labels, *place = room->place; /* labels are written at the end */
    for (int64_t t = 0; t < n; t++)
        of_token[t] = -1;
    for (int64_t i = 0; i < m; i++) {
        int64_t token = m < n ? room->chosen[i] : i;
        float *row = room->points.rows + i * shape.channels;
        prepare(z + token * stride, shape.channels, ward, row);
        room->chosen[i] = place[i] = token;
        room->mass[i] = weights[token];
        room->inverse[i] = line_up(token, ward->places * n, weights[token]);
        of_token[token] = i;
    }
    lay_tiles(&room->points);
    product_matrix(&room->points, ward->far, room->matrix);
    int64_t *of_live = room->partner, width = n; /* partners are free between rounds */
    for (int64_t round = 0; round < ward->rounds; round++) {
        merge_cheapest(room->matrix, room->inverse, live, place, width, ward->merges[round], ward,
                       room->norms, room->cheapest, room->offers, room->partner, room->root);
        int64_t left = 0;
        for (int64_t i = 0; i < live; i++) /* number them by their roots */
            if (room->root[i] == i)
                room->first[i] = left++;
        for (int64_t i = 0; i < live; i++)
            of_live[i] = room->first[room->root[i]];
        for (int64_t i = 0; i < m; i++)
            of_token[room->chosen[i]] = of_live[of_token[room->chosen[i]]];
        width = read_places(n, of_token, left, place);
        if (round + 1 < ward->rounds)
            merged_products(room->matrix, room->rows, room->mass, live, left, of_live,
                            room->total);
        for (int64_t c = 0; c < left; c++)
            room->inverse[c] = line_up(place[c], ward->places * width, room->mass[c]);
        live = left;
    }
    for (int64_t c = 0; c < live; c++)
        room->first[c] = -1;
    for (int64_t t = 0; t < n; t++) {
        int64_t *lowest = of_token[t] < 0 ? NULL : &room->first[of_token[t]];
        if (lowest && *lowest < 0)
            *lowest = t;
        labels[t] = lowest ? *lowest : t;
    }
    return 0;
}

int ward_labels(Shape shape, Tokens z, const float *weights, Ward ward, int64_t *labels)
{
    int64_t n = shape.tokens, parts = shape.batch < shape.threads ? shape.batch : shape.threads;
    size_t size = lay_out(0, n, shape.channels, &ward).end;
    int failed = 0;
    char *rooms = malloc(parts * size);
    if (!rooms)
        return -1;
#pragma omp parallel for num_threads(parts) if (parts > 1) reduction(| : failed)
    for (int64_t part = 0; part < parts; part++) {
        Room room = lay_out((uintptr_t)rooms + part * size, n, shape.channels, &ward);
        int64_t end = shape.batch * (part + 1) / parts;
        for (int64_t b = shape.batch * part / parts; b < end; b++)
            failed |= cluster_sample(&room, shape, (const float *)z.values + b * z.sample_stride,
                                     z.token_stride, weights + b * n, &ward, labels + b * n);
    }
    free(rooms);
    return failed;
}
